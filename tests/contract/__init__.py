"""What others rely on and no refactoring may change: bytes, names, times to live, answers.

A change of a file under `frozen/` is a change of the API and belongs in CHANGELOG.md.
`LLMIS_FREEZE=1 pytest tests/contract` writes the files anew, see `frozen_file`. The wording of
messages and descriptions is not part of the contract, nor is what differs between two runs: ids,
times, how tokens are grouped into chunks.
"""
