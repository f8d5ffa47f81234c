"""Log probabilities name tokens: what the denylist keeps out of an answer, they must not tell."""

import codecs
from dataclasses import dataclass, field
from typing import Any

import msgspec

from shared.messages import Delta, FinishReason, Logprob, TokenLogprobs

_MASKED = b"***"


@dataclass(slots=True)
class LogprobFilter:
    """Of one choice, in the order of its deltas, however they were joined."""

    _held: list[tuple[int, int, TokenLogprobs]] = field(default_factory=list)
    """Tokens whose text is not let through yet: where it begins and ends."""
    _masks: list[tuple[int, int]] = field(default_factory=list)
    _length: int = 0
    _decoder: Any = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))

    def pass_(self, delta: Delta) -> list[TokenLogprobs]:
        """The tokens that may be shown by now. Those of masked text have no name."""
        filtered = delta.filtered
        if filtered is None:
            return delta.logprobs
        for token in delta.logprobs:
            begin = self._length
            self._length += len(self._decoder.decode(token.chosen.piece))
            # The first bytes of a character stand where it will.
            end = max(self._length, begin + 1) if token.chosen.piece else begin
            self._held.append((begin, end, token))
        self._masks += [(m.begin, m.end) for m in filtered.matches if m.action == "mask"]
        is_whole = delta.finish_reason not in (None, FinishReason.CONTENT_FILTER)
        shown: list[TokenLogprobs] = []
        while self._held and (is_whole or self._held[0][1] <= filtered.seen):
            shown.append(self._shown(*self._held.pop(0)))
        return shown

    def _shown(self, begin: int, end: int, token: TokenLogprobs) -> TokenLogprobs:
        if not any(begin < mask[1] and mask[0] < end for mask in self._masks):
            return token
        chosen = Logprob(-1, token.chosen.logprob, b"", _MASKED)
        return msgspec.structs.replace(token, chosen=chosen, top=[])
