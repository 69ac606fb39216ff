"""Tables and texts on the pages of Prefect's task runs; a stage that is called as a function has none."""

from collections.abc import Mapping, Sequence
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.context import TaskRunContext


def show_table(key: str, table: Sequence[Mapping[str, Any]], description: str) -> None:
    """Shows a table, one row a mapping."""
    if TaskRunContext.get() is not None:
        create_table_artifact(key=key, table=[dict(row) for row in table], description=description)


def show_markdown(key: str, markdown: str, description: str) -> None:
    """Shows a text."""
    if TaskRunContext.get() is not None:
        create_markdown_artifact(key=key, markdown=markdown, description=description)
