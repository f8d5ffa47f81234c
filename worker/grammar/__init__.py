"""Grammars: compiled, tried in their own process, applied as token masks. It knows no engine."""
