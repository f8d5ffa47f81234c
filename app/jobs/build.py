"""From a checked request body to a job. Raises LlmisError for what the service does not take."""

from dataclasses import dataclass
from typing import Any

import msgspec

from app.jobs.prompt_filter import check_prompt
from app.metrics.request_record import RequestRecord
from app.models.catalog import Catalog
from app.models.last_used import LastUsed
from app.models.loader import Loader
from app.schemas.generation import ChatRequest, CompletionRequest, GenerationRequest
from app.schemas.messages import Message, continues_last
from app.schemas.parse import shortened
from app.schemas.tools import ToolParam, tool_use
from shared.clock import clock
from shared.denylist.file import DenylistFile
from shared.errors import InvalidRequest, ModelNotFound, ModelUnloaded
from shared.settings.fields import Settings
from shared.settings.model_settings import SamplingDefaults
from shared.wire.job import AnswerOptions, ChatMessage, Job, JobKind, Priority, Tool, ToolChoice

_COMPLETION_MAX_TOKENS = 16
"""OpenAI's default for legacy completions."""


@dataclass(slots=True)
class JobRequest:
    """What a job has from its HTTP request or WebSocket frame, the body aside."""

    id: str
    owner: str
    record: RequestRecord
    filter_tags: list[str] | None = None
    """Set by the builder: rules of the denylist that match the prompt and only tag it."""


@dataclass(frozen=True, slots=True)
class JobBuilder:
    """Makes jobs, one builder per process. Its methods raise InvalidRequest for a bad body,
    ContentFiltered, and what keeps the model from being used: see `_check_model`."""

    _settings: Settings
    _catalog: Catalog
    _loader: Loader
    _denylist: DenylistFile | None
    """None = no filter."""
    _last_used: LastUsed

    def chat(self, body: ChatRequest, request: JobRequest) -> Job:
        use = tool_use(body.tool_choice, self.tools(body.tools or []))
        continues = continues_last(body.messages)
        if continues and use.choice is ToolChoice.REQUIRED:
            reason = "A message with prefix: true is continued with text, not with a forced call."
            raise InvalidRequest(reason, param="tool_choice")
        return self._generation(
            body,
            request,
            JobKind.CHAT,
            num_choices=body.num_choices,
            messages=self.messages(body.messages),
            max_tokens=body.max_completion_tokens or body.max_tokens,
            logprobs=body.num_logprobs,
            wants_logprobs=bool(body.logprobs),
            tools=use.tools,
            tool_choice=use.choice,
            tool_name=use.name,
            # OpenAI's promise: a tool that is named is called exactly once.
            parallel_tool_calls=body.parallel_tool_calls is not False and use.name is None,
            template_arguments=self.template_arguments(body.template_arguments),
            continues=continues,
        )

    def completion(self, body: CompletionRequest, request: JobRequest) -> Job:
        prompts = body.prompts()
        max_tokens = body.max_tokens
        if max_tokens is None:
            limit = self._settings.max_completion_tokens or _COMPLETION_MAX_TOKENS
            max_tokens = min(_COMPLETION_MAX_TOKENS, limit)
        if max_tokens == 0 and not body.echo:
            raise InvalidRequest("max_tokens may be 0 only with echo.", param="max_tokens")
        if body.suffix and body.echo:
            raise InvalidRequest("suffix and echo cannot be combined.", param="echo")
        num_choices, logprobs = body.num_generated, body.logprobs
        if num_choices > body.num_choices and logprobs is None:
            logprobs = 0  # best_of ranks the choices by them
        return self._generation(
            body,
            request,
            JobKind.COMPLETION,
            num_choices=num_choices,
            prompts=prompts,
            max_tokens=max_tokens,
            logprobs=logprobs,
            wants_logprobs=body.logprobs is not None,
            echo=bool(body.echo),
            prompt_logprobs=bool(body.echo) and body.logprobs is not None,
            suffix=body.suffix or None,
        )

    def other(
        self,
        model: str,
        kind: JobKind,
        prompts: list[str | list[int]],
        request: JobRequest,
        **fields: Any,
    ) -> Job:
        """A job that generates nothing: embeddings, tokens, or the text of tokens."""
        self._check_model(model, request.record)
        return self._job(model, kind, request, prompts=prompts, **fields)

    def messages(self, messages: list[Message]) -> list[ChatMessage]:
        _check_number("messages", len(messages), self._settings.max_messages)
        return [message.to_message(i) for i, message in enumerate(messages)]

    def template_arguments(self, arguments: dict[str, Any]) -> dict[str, Any]:
        self._check_size("chat_template_kwargs", arguments)
        return arguments

    def tools(self, params: list[ToolParam]) -> list[Tool]:
        _check_number("tools", len(params), self._settings.max_tools)
        tools = [param.to_tool(f"tools[{i}]", self._settings) for i, param in enumerate(params)]
        self._check_size("tools", params)
        names = [tool.name for tool in tools]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise InvalidRequest(
                    f"Two tools have the name {name!r}.", param=f"tools[{i}].function.name"
                )
        return tools

    def _check_model(self, name: str, record: RequestRecord) -> None:
        """Raise ModelNotFound, ModelUnloaded, or the failure of the model's last load.

        A configured model that is still being loaded passes: its queue keeps the request. From
        here on the request counts as one of the model's.
        """
        if not self._catalog.is_known(name):
            raise ModelNotFound(
                f"The model {shortened(name)} does not exist. GET /v1/models lists those that do.",
                param="model",
            )
        record.model = name
        if self._catalog.is_leaving(name):
            raise ModelUnloaded(f"The model {shortened(name)} is being unloaded.")
        self._loader.check(name)

    def _generation(
        self,
        body: GenerationRequest,
        request: JobRequest,
        kind: JobKind,
        *,
        num_choices: int,
        wants_logprobs: bool,
        **fields: Any,
    ) -> Job:
        self._check_model(body.model, request.record)
        total = num_choices * max(1, len(fields.get("prompts", [])))
        _check_choices(total, self._settings.max_choices)
        _check_max_tokens(body, fields.get("max_tokens"), self._settings.max_completion_tokens)
        configured = self._settings.model(body.model)
        grammar = body.grammar(self._settings)
        has_grammar = grammar is not None or fields.get("tool_choice") is ToolChoice.REQUIRED
        _check_grammar(body, has_grammar)
        return self._job(
            body.model,
            kind,
            request,
            timeout_s=body.timeout_s,
            num_choices=num_choices,
            stop=body.stop_strings,
            sampling=body.sampling(configured.sampling if configured else SamplingDefaults()),
            min_tokens=body.min_tokens or 0,
            ignore_eos=bool(body.ignore_eos),
            priority=Priority(body.priority or Priority.INTERACTIVE),
            grammar=grammar,
            answer=AnswerOptions(
                wants_usage=body.wants_usage,
                wants_logprobs=wants_logprobs,
                num_wanted=body.num_choices,
                tier="default" if body.service_tier else None,
                metadata=body.metadata or {},
            ),
            **fields,
        )

    def _job(
        self,
        model: str,
        kind: JobKind,
        request: JobRequest,
        *,
        timeout_s: float | None = None,
        **fields: Any,
    ) -> Job:
        self._last_used.note(model)
        now, longest_s = clock.now(), self._settings.request_timeout_s
        job = Job(
            id=request.id,
            model=model,
            kind=kind,
            owner=request.owner,
            created_at=now,
            deadline_at=now + min(timeout_s or longest_s, longest_s),
            **fields,
        )
        request.record.ask(job)
        if self._denylist is not None:
            request.filter_tags = check_prompt(job, self._denylist.current, request.record)
        return job

    def _check_size(self, param: str, value: Any) -> None:
        """Schemas of all tools together, or arguments of a template. Raises InvalidRequest."""
        try:
            msgspec.msgpack.encode(value)
        except OverflowError as exc:
            raise InvalidRequest(f"{param} has a number beyond 64 bits.", param=param) from exc
        size, limit = len(msgspec.json.encode(value)), self._settings.max_tools_bytes
        if size > limit:
            raise InvalidRequest(
                f"{param} has {size} bytes; at most {limit} are taken.", param=param
            )


def is_chat_or_completion(job: Job) -> bool:
    return job.kind in (JobKind.CHAT, JobKind.COMPLETION)


def is_streamable(job: Job) -> bool:
    """Whether its answer has chunks. Which choices of `best_of` are the best is known at the end
    alone."""
    return is_chat_or_completion(job) and job.num_choices == job.answer.num_wanted


def _check_number(param: str, number: int, limit: int) -> None:
    if number > limit:
        raise InvalidRequest(
            f"{param} has {number} entries; at most {limit} are taken.", param=param
        )


def _check_choices(number: int, limit: int) -> None:
    if number > limit:
        raise InvalidRequest(
            f"n is {number}; at most {limit} choices are made for one request.", param="n"
        )


def _check_max_tokens(body: GenerationRequest, max_tokens: int | None, limit: int) -> None:
    """`limit`: 0 = none."""
    if 0 < limit < (max_tokens or 0):
        is_new_name = getattr(body, "max_completion_tokens", None) is not None
        param = "max_completion_tokens" if is_new_name else "max_tokens"
        raise InvalidRequest(
            f"{param} is {max_tokens}; at most {limit} tokens are made for one choice.", param=param
        )
    if max_tokens is not None and (body.min_tokens or 0) > max_tokens:
        raise InvalidRequest("min_tokens must not be larger than max_tokens.", param="min_tokens")


def _check_grammar(body: GenerationRequest, has_grammar: bool) -> None:
    """A grammar alone decides when the text is complete."""
    for name in ("ignore_eos", "min_tokens"):
        if has_grammar and getattr(body, name):
            raise InvalidRequest(f"{name} cannot be combined with a given form.", param=name)
