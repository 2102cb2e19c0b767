"""griffin pull: a model from the Hugging Face hub into its cache."""

from typing import Annotated

import typer

from griffinlm.cli.options import AsJson
from griffinlm.cli.output import print_json


def pull(
    repository: Annotated[str, typer.Argument(metavar="REPO", help="ORGANISATION/NAME on the hub.")],
    revision: Annotated[
        str | None, typer.Option("--revision", metavar="R", help="A branch, a tag or a commit.")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Only look whether it is in the cache.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fetch a model from the Hugging Face hub, print where it lies.

    What is already in the cache is not fetched again; a download that broke off is taken up.
    """
    from griffinlm.checkpoint import pull as fetch

    path = fetch(repository, offline=offline, revision=revision)
    if as_json:
        print_json({"repository": repository, "revision": revision, "path": str(path)})
    else:
        print(path)
