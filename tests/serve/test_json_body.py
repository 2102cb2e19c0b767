"""How many keys, lists and tables a body has, without parsing it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from griffinlm.serve.errors import ApiError
from griffinlm.serve.json_body import MOST_PARTS, num_marks_outside_strings, require_few_parts

TEXTS = st.text('\\"":[{,}] né鷹', max_size=12)
VALUES = st.recursive(
    st.none() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
)


def num_parts(value) -> int:
    match value:
        case dict():
            return 1 + len(value) + sum(map(num_parts, value.values()))
        case list():
            return 1 + sum(map(num_parts, value))
        case _:
            return 0


@given(VALUES, st.booleans(), st.sampled_from([None, 2]))
def test_marks_outside_strings_are_the_keys_lists_and_tables_of_the_parsed_body(value, is_ascii, indent):
    text = json.dumps(value, ensure_ascii=is_ascii, indent=indent)
    assert num_marks_outside_strings(text.encode()) == num_parts(value)


def test_bodies_of_very_many_parts_are_400_and_texts_of_any_marks_are_read(client):
    few = {"model": "eyas", "prompt": '\\":[{"' * (MOST_PARTS // 4)}
    assert client.post("/tokenize", json=few).status_code == 200
    for many in (dict.fromkeys(map(str, range(MOST_PARTS))), [[]] * MOST_PARTS, [{}] * MOST_PARTS):
        response = client.post("/v1/chat/completions", json=many)
        assert response.status_code == 400
        assert response.json()["error"]["message"] == (
            f"the body has {MOST_PARTS + 1} keys, lists and tables; at most {MOST_PARTS} are read"
        )


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_bodies_in_other_encodings_are_refused(encoding):
    with pytest.raises(ApiError, match="UTF-8"):
        require_few_parts('{"model": "eyas"}'.encode(encoding))
