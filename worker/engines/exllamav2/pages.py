"""Counts the pages of the KV cache that sequences will hold.

ExLlamaV2 reserves the pages for prompt and completion when a job starts; jobs with equal prompts
share their full pages. The ledger counts like the generator, over the running sequences only, and
never too few, so an admitted sequence starts in the next step. (It may count too many: the
generator also merges pages that become equal while text is generated.)
Source: exllamav2@v0.3.2:generator/dynamic.py, prepare_for_queue, current_new_pages_required.
"""

import hashlib
from array import array
from collections import Counter
from dataclasses import dataclass

PAGE_TOKENS = 256

Key = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Demand:
    shareable: tuple[bytes, ...]
    """Digests of the full prompt pages; each covers all pages before it too."""
    own_pages: int
    """Pages for the rest of the prompt and the completion."""
    prompt_tokens: int

    @property
    def total_pages(self) -> int:
        return len(self.shareable) + self.own_pages


def demand(prompt: list[int], max_tokens: int, num_draft_tokens: int) -> Demand:
    """The pages of a prompt, `max_tokens` of completion, and the drafts beyond the last token."""
    # - 1: the last prompt token is always computed, so the page that it is in is never shared.
    num_full = (len(prompt) - 1) // PAGE_TOKENS
    total = pages_of(len(prompt) + max_tokens + num_draft_tokens)
    digests, digest = [], b""
    for i in range(num_full):
        page = array("q", prompt[i * PAGE_TOKENS : (i + 1) * PAGE_TOKENS])
        digest = hashlib.blake2b(digest + page.tobytes(), digest_size=16).digest()
        digests.append(digest)
    return Demand(tuple(digests), total - num_full, len(prompt))


def pages_of(num_tokens: int) -> int:
    return -(-num_tokens // PAGE_TOKENS)


def round_up(num_tokens: int) -> int:
    """Round up to whole pages."""
    return pages_of(num_tokens) * PAGE_TOKENS


class PageLedger:
    """Engine loop only."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._holders: Counter[bytes] = Counter()
        self._own_pages = 0
        self._held: dict[Key, Demand] = {}

    @property
    def free_pages(self) -> int:
        return self.num_pages - self._own_pages - len(self._holders)

    def fits(self, wanted: Demand) -> bool:
        missing = sum(digest not in self._holders for digest in wanted.shareable)
        return missing + wanted.own_pages <= self.free_pages

    def can_ever_fit(self, wanted: Demand) -> bool:
        return wanted.total_pages <= self.num_pages

    def unread_tokens(self, wanted: Demand) -> int:
        """Prompt tokens of a new sequence to compute before its first one is drawn, without those
        in pages of running sequences."""
        num_shared = 0
        while num_shared < len(wanted.shareable) and wanted.shareable[num_shared] in self._holders:
            num_shared += 1
        # - 1: the last prompt token is computed in the step that draws.
        return wanted.prompt_tokens - 1 - num_shared * PAGE_TOKENS

    def reserve(self, key: Key, wanted: Demand) -> None:
        self._held[key] = wanted
        self._holders.update(wanted.shareable)
        self._own_pages += wanted.own_pages

    def release(self, key: Key) -> None:
        given_back = self._held.pop(key)
        self._own_pages -= given_back.own_pages
        for digest in given_back.shareable:
            self._holders[digest] -= 1
            if not self._holders[digest]:
                del self._holders[digest]

    def clear(self) -> None:
        self._held.clear()
        self._holders.clear()
        self._own_pages = 0
