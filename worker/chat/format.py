"""Which family's conventions a model follows, found from the source of its chat template."""

from dataclasses import dataclass

from shared.messages import Grammar, Job, ToolChoice
from worker.chat.calls import MARKS, SEPARATOR, CallSyntax
from worker.chat.conversation import Style, may_call
from worker.chat.grammar import job_grammar
from worker.chat.harmony import CHANNEL, MESSAGE
from worker.chat.parser import OutputParser, Reasoning
from worker.chat.template import ChatTemplate

_REASONING = (Reasoning("<think>", "</think>"), Reasoning("[THINK]", "[/THINK]"))


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """How a model writes tool calls and reasoning, and what its template wants."""

    calls: CallSyntax
    reasoning: Reasoning | None
    style: Style

    @property
    def shown_texts(self) -> frozenset[str]:
        """What has to be part of the model's text, also where it is a control token."""
        marks = self.reasoning
        return frozenset(MARKS[self.calls]) | ({marks.begin, marks.end} if marks else set())

    def starts_in_reasoning(self, prompt: str) -> bool:
        """Whether a prompt, or its end, leaves the model in the middle of its reasoning."""
        return self.reasoning is not None and prompt.rstrip().endswith(self.reasoning.begin)

    def parser(self, job: Job, choice: int, starts_in_reasoning: bool) -> OutputParser | None:
        """Make the parser of a choice; None where all text is content."""
        tools = job.tools if may_call(job) else []
        calls = self.calls if tools or self.calls is CallSyntax.HARMONY else None
        if calls is None and self.reasoning is None:
            return None
        return OutputParser(
            (job.id, choice),
            calls=calls,
            tools=tools,
            reasoning=self.reasoning,
            starts_in_reasoning=starts_in_reasoning,
            is_parallel=job.parallel_tool_calls,
            is_forced=job.tool_choice is ToolChoice.REQUIRED,
        )

    def grammar(
        self, job: Job, starts_in_reasoning: bool, control_tokens: dict[str, int]
    ) -> Grammar | None:
        """What the completion has to match so that reasoning, calls and the job's own grammar
        find their places. Raises InvalidRequest."""
        return job_grammar(job, self.calls, self.reasoning, starts_in_reasoning, control_tokens)


def find_format(template: ChatTemplate) -> ChatFormat:
    """Find the format. Where a template knows no tools, or writes calls in a way that is not
    known here, the model is told to write them as Hermes does."""
    source = template.source
    if CHANNEL in source and MESSAGE in source:
        return ChatFormat(CallSyntax.HARMONY, None, Style(reasoning_key="thinking"))
    reasoning = next((marks for marks in _REASONING if marks.end in source), None)
    calls = _call_syntax(source) if template.takes_tools else None
    if calls is None:
        return ChatFormat(CallSyntax.HERMES, reasoning, Style(is_generic=True))
    is_mistral = calls in (CallSyntax.MISTRAL, CallSyntax.MISTRAL_NAMED)
    return ChatFormat(calls, reasoning, Style(has_short_ids=is_mistral))


def _call_syntax(source: str) -> CallSyntax | None:
    if "[TOOL_CALLS]" in source:
        return CallSyntax.MISTRAL_NAMED if "[ARGS]" in source else CallSyntax.MISTRAL
    if SEPARATOR in source:
        return CallSyntax.DEEPSEEK if "```json" in source else CallSyntax.DEEPSEEK_NAMED
    if "<|start_header_id|>" in source and '"parameters"' in source:
        return CallSyntax.LLAMA
    if "<tool_call>" not in source or "<arg_key>" in source:
        return None  # GLM, too, has these marks, around an XML of its own
    return CallSyntax.QWEN_XML if "<function=" in source else CallSyntax.HERMES
