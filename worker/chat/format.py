"""The chat format of a model, recognised by the source of its chat template."""

from dataclasses import dataclass

from shared.wire.job import Grammar, Job, ToolChoice
from worker.chat.conversation import TemplateStyle, may_call
from worker.chat.harmony import CHANNEL, MESSAGE
from worker.chat.output_parser import OutputParser, Reasoning
from worker.chat.template import ChatTemplate
from worker.chat.tool_call_formats import MARKS, SEPARATOR, CallSyntax
from worker.chat.tool_grammar import job_grammar

_REASONING = (Reasoning("<think>", "</think>"), Reasoning("[THINK]", "[/THINK]"))


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """How a model writes tool calls and reasoning, and the conventions of its template."""

    calls: CallSyntax
    reasoning: Reasoning | None
    style: TemplateStyle

    @property
    def shown_texts(self) -> frozenset[str]:
        """Marks that have to appear in the model's text, even if they are control tokens."""
        marks = self.reasoning
        return frozenset(MARKS[self.calls]) | ({marks.begin, marks.end} if marks else set())

    def starts_in_reasoning(self, prompt: str) -> bool:
        """Whether a prompt, or its end, has begun the model's reasoning."""
        return self.reasoning is not None and prompt.rstrip().endswith(self.reasoning.begin)

    def parser(self, job: Job, choice: int, starts_in_reasoning: bool) -> OutputParser | None:
        """Make the parser of a choice; None if all text is content."""
        # Harmony is parsed even without tools: its content, too, is enclosed in marks.
        tools = job.tools if may_call(job) else []
        calls = self.calls if tools or self.calls is CallSyntax.HARMONY else None
        if calls is None and self.reasoning is None:
            return None
        parser = OutputParser(
            (job.id, choice),
            calls=calls,
            tools=tools,
            reasoning=self.reasoning,
            starts_in_reasoning=starts_in_reasoning,
            is_parallel=job.parallel_tool_calls,
            is_forced=job.tool_choice is ToolChoice.REQUIRED,
        )
        if job.continues and calls is CallSyntax.HARMONY:
            parser.skip(f"{CHANNEL}final{MESSAGE}")  # the header is in the prompt
        return parser

    def grammar(
        self, job: Job, starts_in_reasoning: bool, control_tokens: dict[str, int]
    ) -> Grammar | None:
        """The grammar of reasoning, calls and the job's own grammar. Raises InvalidRequest."""
        if job.continues and self.calls is CallSyntax.HARMONY:
            return job.grammar  # the header of the answer is in the prompt
        return job_grammar(job, self.calls, self.reasoning, starts_in_reasoning, control_tokens)


def find_format(template: ChatTemplate) -> ChatFormat:
    """Find the format. Without tools in the template, or with calls in an unknown syntax, the
    prompt instructs the model to write calls in the Hermes format."""
    source = template.source
    if CHANNEL in source and MESSAGE in source:
        return ChatFormat(CallSyntax.HARMONY, None, TemplateStyle(reasoning_key="thinking"))
    reasoning = next((marks for marks in _REASONING if marks.end in source), None)
    calls = _call_syntax(source) if template.takes_tools else None
    if calls is None:
        return ChatFormat(CallSyntax.HERMES, reasoning, TemplateStyle(is_generic=True))
    is_mistral = calls in (CallSyntax.MISTRAL, CallSyntax.MISTRAL_NAMED)
    return ChatFormat(calls, reasoning, TemplateStyle(has_short_ids=is_mistral))


def _call_syntax(source: str) -> CallSyntax | None:
    if "[TOOL_CALLS]" in source:
        return CallSyntax.MISTRAL_NAMED if "[ARGS]" in source else CallSyntax.MISTRAL
    if SEPARATOR in source:
        return CallSyntax.DEEPSEEK if "```json" in source else CallSyntax.DEEPSEEK_NAMED
    if "<|start_header_id|>" in source and '"parameters"' in source:
        return CallSyntax.LLAMA
    if "<tool_call>" not in source or "<arg_key>" in source:
        return None  # GLM uses the mark around an XML of its own
    return CallSyntax.QWEN_XML if "<function=" in source else CallSyntax.HERMES
