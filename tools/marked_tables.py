"""Tables between marks of a document: `<!-- table NAME -->` and `<!-- end -->`."""


def filled(text: str, found: dict[str, str]) -> str:
    """Return the document with the tables in their places."""
    for name, table in found.items():
        before, begin, rest = text.partition(f"<!-- table {name} -->\n")
        _, end, after = rest.partition("<!-- end -->\n")
        assert end, f"the document has a place for the table {name}"
        text = f"{before}{begin}\n{table}\n\n{end}{after}"
    return text


def markdown(rows: list[list[str]]) -> str:
    """Format a table; the first row is the heading, the second the line below it."""
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows
    )
