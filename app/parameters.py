"""OpenAI's parameters that this service does not act upon, and why.

All others are fields of the request bodies in `app.schemas`.
"""

IGNORED = {
    "safety_identifier": "who the end user is concerns nobody here",
    "prompt_cache_key": "every replica finds shared prefixes by itself",
    "prompt_cache_options": "every replica finds shared prefixes by itself",
    "prompt_cache_retention": "every replica keeps prefixes for as long as there is room",
    "prediction": "a hint for speed; the answer is the same without it",
    "verbosity": "the models served here are not trained to follow it",
    "moderation": "see the operator's own filter",
}
"""Accepted, because OpenAI's clients send them, and without effect."""

REFUSED = {
    "audio": "the models served here write text.",
    "functions": "it was replaced by tools.",
    "function_call": "it was replaced by tool_choice.",
    "web_search_options": "there is no search behind this service.",
}
"""They would change the answer: an honest 400 instead of silence. Null, false and an
empty list are taken."""
