"""From a checked request body to a job. Raises LlmisError for what the service does not take."""

import time
from typing import Any

import msgspec
from flask import g

from app.filtering import check_prompt
from app.message_schemas import Message
from app.parsing import shortened
from app.schemas import ChatRequest, CompletionRequest, GenerationRequest
from app.services import services
from app.tool_schemas import ToolParam, tool_use
from shared.errors import GoingAway, InvalidRequest, ModelNotFound, ModelUnloaded
from shared.messages import AnswerOptions, ChatMessage, Job, JobKind, Priority, Tool, ToolChoice
from shared.settings import SamplingDefaults, Settings

_COMPLETION_MAX_TOKENS = 16


def chat_job(body: ChatRequest, request_id: str) -> Job:
    use = tool_use(body.tool_choice, tools_of(body.tools or []))
    return _job(
        body,
        request_id,
        JobKind.CHAT,
        num_choices=body.num_choices,
        messages=messages_of(body.messages),
        max_tokens=body.max_completion_tokens or body.max_tokens,
        logprobs=body.num_logprobs,
        wants_logprobs=bool(body.logprobs),
        tools=use.tools,
        tool_choice=use.choice,
        tool_name=use.name,
        # OpenAI's promise: a tool that is named is called exactly once.
        parallel_tool_calls=body.parallel_tool_calls is not False and use.name is None,
        template_arguments=template_arguments_of(body.template_arguments),
    )


def completion_job(body: CompletionRequest, request_id: str) -> Job:
    prompts = body.prompts()
    max_tokens = body.max_tokens
    if max_tokens is None:
        longest = services().settings.max_completion_tokens or _COMPLETION_MAX_TOKENS
        max_tokens = min(_COMPLETION_MAX_TOKENS, longest)
    if max_tokens == 0 and not body.echo:
        raise InvalidRequest("max_tokens may be 0 only with echo.", param="max_tokens")
    if body.suffix and body.echo:
        raise InvalidRequest("suffix and echo cannot hold together.", param="echo")
    num_choices, logprobs = body.num_generated, body.logprobs
    if num_choices > body.num_choices and logprobs is None:
        logprobs = 0  # the best one is found by them
    return _job(
        body,
        request_id,
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


def is_chat_or_completion(job: Job) -> bool:
    return job.kind in (JobKind.CHAT, JobKind.COMPLETION)


def is_streamable(job: Job) -> bool:
    """Whether its answer has chunks. Which of several choices are the best ones, only their ends
    tell."""
    return is_chat_or_completion(job) and job.num_choices == job.answer.num_wanted


def check_model(name: str) -> None:
    """Raise what keeps a model from being asked: ModelNotFound, ModelUnloaded, GoingAway.

    A configured model may be on its way up: its queue keeps the request until then. From here on
    a refusal of the request at hand counts as the model's.
    """
    shared = services()
    if not shared.catalog.is_known(name):
        raise ModelNotFound(
            f"The model {shortened(name)} does not exist. GET /v1/models lists those that do.",
            param="model",
        )
    g.facts.model = name
    if shared.catalog.is_leaving(name):
        raise ModelUnloaded(f"The model {shortened(name)} is being unloaded.")
    if shared.is_stopping:
        raise GoingAway("The service is shutting down. Send the request again.")
    shared.loader.check(name)


def _job(
    body: GenerationRequest,
    request_id: str,
    kind: JobKind,
    *,
    num_choices: int,
    wants_logprobs: bool,
    **fields: Any,
) -> Job:
    shared = services()
    check_model(body.model)
    total = num_choices * max(1, len(fields.get("prompts", [])))
    if total > shared.settings.max_choices:
        raise InvalidRequest(
            f"{total} choices were asked for; at most {shared.settings.max_choices} "
            "are made for one request.",
            param="n",
        )
    max_tokens = fields.get("max_tokens")
    _check_max_tokens(body, max_tokens, shared.settings.max_completion_tokens)
    if max_tokens is not None and (body.min_tokens or 0) > max_tokens:
        raise InvalidRequest("min_tokens must not be larger than max_tokens.", param="min_tokens")
    grammar = body.grammar(shared.settings)
    _check_grammar(body, grammar is not None or fields.get("tool_choice") is ToolChoice.REQUIRED)
    shared.usage.note(body.model)
    job = Job(
        id=request_id,
        model=body.model,
        kind=kind,
        num_choices=num_choices,
        stop=body.stop_strings,
        sampling=body.sampling(_sampling_defaults(body.model)),
        min_tokens=body.min_tokens or 0,
        ignore_eos=bool(body.ignore_eos),
        priority=Priority(body.priority or Priority.INTERACTIVE),
        grammar=grammar,
        owner=g.principal.owner,
        answer=AnswerOptions(
            wants_usage=body.wants_usage,
            wants_logprobs=wants_logprobs,
            num_wanted=body.num_choices,
            tier="default" if body.service_tier else None,
            metadata=body.metadata or {},
        ),
        created_at=time.time(),
        deadline_at=shared.dispatcher.deadline(body.timeout_s),
        **fields,
    )
    g.facts.ask(job)
    check_prompt(job)
    return job


def _check_max_tokens(body: GenerationRequest, max_tokens: int | None, limit: int) -> None:
    """Raises InvalidRequest."""
    if 0 < limit < (max_tokens or 0):
        is_new_name = getattr(body, "max_completion_tokens", None) is not None
        param = "max_completion_tokens" if is_new_name else "max_tokens"
        raise InvalidRequest(
            f"{param} is {max_tokens}; at most {limit} tokens are made for one choice.",
            param=param,
        )


def _check_grammar(body: GenerationRequest, has_grammar: bool) -> None:
    """A grammar decides alone when the text is complete."""
    for name in ("ignore_eos", "min_tokens"):
        if has_grammar and getattr(body, name):
            raise InvalidRequest(f"{name} cannot hold together with a given form.", param=name)


def messages_of(messages: list[Message]) -> list[ChatMessage]:
    _check_number("messages", len(messages), services().settings.max_messages)
    return [message.to_message(i) for i, message in enumerate(messages)]


def template_arguments_of(arguments: dict[str, Any]) -> dict[str, Any]:
    _check_size("chat_template_kwargs", arguments, services().settings)
    return arguments


def tools_of(params: list[ToolParam]) -> list[Tool]:
    settings = services().settings
    _check_number("tools", len(params), settings.max_tools)
    tools = [param.to_tool(f"tools[{i}]", settings) for i, param in enumerate(params)]
    _check_size("tools", params, settings)
    names = [tool.name for tool in tools]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise InvalidRequest(
                f"Two tools have the name {name!r}.", param=f"tools[{i}].function.name"
            )
    return tools


def _check_number(param: str, number: int, limit: int) -> None:
    if number > limit:
        raise InvalidRequest(
            f"{param} has {number} entries; at most {limit} are taken.", param=param
        )


def _check_size(param: str, value: Any, settings: Settings) -> None:
    """Schemas of all tools together, or what a template is told. Raises InvalidRequest."""
    try:
        msgspec.msgpack.encode(value)
    except OverflowError as exc:
        raise InvalidRequest(f"{param} has a number beyond 64 bits.", param=param) from exc
    size, limit = len(msgspec.json.encode(value)), settings.max_tools_bytes
    if size > limit:
        raise InvalidRequest(f"{param} has {size} bytes; at most {limit} are taken.", param=param)


def _sampling_defaults(name: str) -> SamplingDefaults:
    configured = services().settings.model(name)
    return configured.sampling if configured else SamplingDefaults()
