"""When a completion ends, and what each of its tokens adds to it: one rule for all engines. A
`SequenceCompletion` belongs to the engine loop; the functions are thread-safe."""

from collections.abc import Iterable

from shared.denylist.denylist import NO_OUTPUT_RULES, OutputRules
from shared.wire.events import FinishReason, Logprob
from worker.sequence import Sequence, StepResult
from worker.text.assembler import TextAssembler
from worker.vocabulary import Vocabulary


class SequenceCompletion:
    """The completion of one running sequence: drawn tokens in, text and finish reason out. It ends
    with the first of: an end token, a stop string, a cut by the denylist, `max_tokens`."""

    def __init__(
        self, vocabulary: Vocabulary, sequence: Sequence, end_tokens: frozenset[int]
    ) -> None:
        """Resumes after `sequence.produced`. `end_tokens` are those of the model."""
        self._vocabulary = vocabulary
        self._sequence = sequence
        hidden = _hidden_in_stops(vocabulary, sequence)
        stop_tokens = {token for token, name in hidden.items() if name in sequence.stop}
        self._end_tokens = (frozenset() if sequence.ignore_eos else end_tokens) | stop_tokens
        self._names = hidden
        self._assembler, _ = assembler_of(vocabulary, sequence)
        self._has_drawn = False
        self.num_tokens = len(sequence.produced)
        """Tokens so far, those of earlier attempts and the end token included."""
        self.cached_tokens = 0
        """Prompt tokens found in the KV cache. The engine sets it before the first `accept`."""

    @property
    def num_required(self) -> int:
        """Tokens that must still be drawn before an end token may be."""
        return max(0, self._sequence.min_tokens - self.num_tokens)

    def is_end(self, token: int) -> bool:
        """Whether the token ends the completion and adds no text to it."""
        return token in self._end_tokens

    def logprob(self, token: int, logprob: float) -> Logprob:
        """Describe a token of this sequence as log probabilities report it."""
        piece = piece_in(self._vocabulary, self._sequence, token)
        return Logprob(token, logprob, piece, b"" if piece else self._vocabulary.name(token))

    def report_prompt(self, result: StepResult, num_read: int) -> None:
        """Report how much of the prompt, and of what is resumed, has been read."""
        result.prefilled_tokens = num_read
        result.cached_tokens = self.cached_tokens

    def accept(self, tokens: Iterable[int], result: StepResult, *, is_last: bool = False) -> None:
        """Add drawn tokens to the result, up to the one that ends the completion: the tokens
        after it are dropped, and nothing may be accepted after a result with a finish reason.

        `is_last`: the engine draws no more tokens, so the completion ends here in any case.
        """
        for token in tokens:
            self._accept(token, result)
            if result.finish_reason is not None:
                break
        if is_last and result.finish_reason is None:
            self._finish(result, FinishReason.STOP)
        result.filtered = self._assembler.report()
        result.reasoning_tokens = self._assembler.reasoning_tokens

    def next(self, token: int) -> StepResult:
        """`accept` of one token into a new result, in less time where the token only adds its
        text."""
        num_tokens = self.num_tokens + 1
        if (
            self._assembler.only_decodes
            and self._has_drawn
            and num_tokens < self._sequence.max_tokens
            and token not in self._end_tokens
        ):
            self.num_tokens = num_tokens
            text = self._assembler.decode(piece_in(self._vocabulary, self._sequence, token))
            return StepResult(self._sequence.key, text, [token])
        result = StepResult(self._sequence.key)
        self.accept([token], result)
        return result

    def _accept(self, token: int, result: StepResult) -> None:
        if not self._has_drawn:
            # The first token of this attempt: everything known before it has been read.
            self._has_drawn = True
            self.report_prompt(result, len(self._sequence.known_tokens))
        self.num_tokens += 1
        result.token_ids.append(token)
        if self.is_end(token):
            self._finish(result, FinishReason.STOP)
            return
        piece = piece_in(self._vocabulary, self._sequence, token)
        result.text += self._assembler.push(piece, self._names.get(token, ""))
        if self._assembler.is_stopped or self.num_tokens >= self._sequence.max_tokens:
            self._finish(result, FinishReason.LENGTH)

    def _finish(self, result: StepResult, reason: FinishReason) -> None:
        """Release the text held back. A stop string or a cut in it outranks `reason`."""
        result.text += self._assembler.finish(is_cut=reason is not FinishReason.STOP)
        is_stopped = self._assembler.is_stopped
        result.finish_reason = self._assembler.reason if is_stopped else reason


def piece_in(vocabulary: Vocabulary, sequence: Sequence, token: int) -> bytes:
    """The bytes that a token adds to the text of this sequence."""
    if token in sequence.shown_tokens:
        return vocabulary.name(token)
    return vocabulary.piece(token)


def assembler_of(vocabulary: Vocabulary, sequence: Sequence) -> tuple[TextAssembler, str]:
    """Make the assembler of a sequence, and the text that `produced` has given clients so far. The
    produced tokens are pushed again, so the same text is held back as before."""
    names = _hidden_in_stops(vocabulary, sequence) if sequence.produced else {}
    pieces = [
        (piece_in(vocabulary, sequence, token), names.get(token, "")) for token in sequence.produced
    ]
    assembler = _assembler(sequence, sequence.rules)
    text = "".join(assembler.push(*piece) for piece in pieces if not assembler.is_stopped)
    if not pieces or assembler.seen == sequence.seen:
        assembler.report()  # the log already has these matches
        return assembler, text
    # The earlier attempt filtered by other rules. The text it has sent stays sent: find out how
    # much that is without any filter, and apply today's rules from there on.
    assembler = _assembler(sequence, None)
    text = "".join(assembler.push(*piece) for piece in pieces)
    # `seen` counts the stripped space, the text does not.
    num_sent = len(text) if sequence.seen is None else sequence.seen - assembler.num_stripped
    rules = sequence.rules or NO_OUTPUT_RULES
    assembler.filter_behind(rules, text[:num_sent], text[num_sent:])
    return assembler, text[:num_sent]


def _assembler(sequence: Sequence, rules: OutputRules | None) -> TextAssembler:
    parser = sequence.new_parser() if sequence.new_parser is not None else None
    return TextAssembler(
        sequence.stop,
        strip_leading_space=sequence.strip_leading_space,
        rules=rules,
        parser=parser,
        # A stop string takes text away, and with it the log probabilities of its tokens.
        reports=bool(sequence.stop) and sequence.logprobs is not None,
    )


def _hidden_in_stops(vocabulary: Vocabulary, sequence: Sequence) -> dict[int, str]:
    """The control tokens that stop strings name and that add no text, with their names."""
    if not sequence.stop:
        return {}
    return {
        token: name
        for name, token in vocabulary.control_tokens.items()
        if token not in sequence.shown_tokens and any(name in stop for stop in sequence.stop)
    }


def detokenize(vocabulary: Vocabulary, token_ids: list[int]) -> str:
    """The text of token ids, control tokens by name. Bytes that are not UTF-8 become U+FFFD."""
    return b"".join(map(vocabulary.name, token_ids)).decode("utf-8", "replace")
