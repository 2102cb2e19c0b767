"""Whatever the document of the interface allows, and what it does not: no error of the server's own."""

import pytest
from hypothesis import HealthCheck, given, settings

schemathesis = pytest.importorskip("schemathesis")

MOST_TOKENS = 20
LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_no_request_is_answered_with_a_fault_of_the_servers(server, mode):
    document = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    chosen = schemathesis.GenerationMode(mode)
    num_answered = 0

    def visit(operation):
        @given(case=operation.as_strategy(generation_mode=chosen))
        @settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        def ask(case):
            nonlocal num_answered
            for name in LIMITS if isinstance(case.body, dict) else ():
                if isinstance(case.body.get(name), int):
                    case.body[name] = min(case.body[name], MOST_TOKENS)
            response = case.call(timeout=60)
            assert response.status_code < 500, (operation.label, response.text)
            num_answered += 1

        ask()

    for found in document.get_all_operations():
        # Of a path or of bytes nothing is wrong by the document.
        if chosen.is_positive or any(body.media_type == "application/json" for body in found.ok().body):
            visit(found.ok())
    assert num_answered > 25
