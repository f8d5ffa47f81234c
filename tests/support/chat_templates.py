"""Chat templates in the manner of model families, cut down to what tests look at."""

HERMES = """
{%- if tools %}<|im_start|>system
{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}
<tools>
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}</tools>
Answer with <tool_call>{"name": ..., "arguments": ...}</tool_call><|im_end|>
{% endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}<|im_start|>user
<tool_response>
{{ message.content }}
</tool_response><|im_end|>
{% elif message.tool_calls %}<|im_start|>assistant
{{ message.content | trim }}
{%- for call in message.tool_calls %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>
{% elif not (loop.first and tools and message.role == 'system') %}<|im_start|>{{ message.role }}
{% if message.reasoning_content is defined %}<think>
{{ message.reasoning_content.strip('\\n') }}
</think>

{% endif %}{{ message.content.split('</think>')[-1] | trim }}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% endif %}{% endif %}"""

LLAMA = """{{ bos_token }}<|start_header_id|>system<|end_header_id|>

{% if tools %}Environment: ipython
{{ 'Respond as {"name": ..., "parameters": ...}' }}
{% for tool in tools %}{{ tool | tojson(indent=4, ensure_ascii=True) }}

{% endfor %}{% endif %}<|eot_id|>
{%- for message in messages %}
{%- if message.role == 'tool' %}<|start_header_id|>ipython<|end_header_id|>

{{ message.content | tojson }}<|eot_id|>
{%- elif 'tool_calls' in message %}
{%- if message.tool_calls | length != 1 %}{{ raise_exception('only one call') }}{% endif %}
{%- set call = message.tool_calls[0].function %}<|start_header_id|>assistant<|end_header_id|>

{{ '{"name": "' + call.name + '", "parameters": ' }}{{ call.arguments | tojson }}}<|eot_id|>
{%- else %}<|start_header_id|>{{ message.role }}<|end_header_id|>

{{ message.content | trim }}<|eot_id|>
{%- endif %}
{%- endfor %}<|start_header_id|>assistant<|end_header_id|>

"""

MISTRAL = """{{ bos_token }}
{%- if tools %}[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}
{%- for message in messages %}
{%- if message.role == 'user' %}[INST] {{ message.content }}[/INST]
{%- elif message.role == 'system' %}[INST] {{ message.content }}[/INST]
{%- elif message.tool_calls is defined %}[TOOL_CALLS] [
{%- for call in message.tool_calls %}
{%- if call.id | length != 9 %}{{ raise_exception('ids have 9 characters') }}{% endif %}
{{- '{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments | tojson }}, "id": "{{ call.id }}"}
{%- endfor %}]{{ eos_token }}
{%- elif message.role == 'tool' %}
{%- if message.tool_call_id | length != 9 %}{{ raise_exception('9 characters') }}{% endif -%}
[TOOL_RESULTS] {"content": {{ message.content }}, "call_id": "{{ message.tool_call_id }}"}
{%- else %} {{ message.content }}{{ eos_token }}
{%- endif %}
{%- endfor %}"""

DEEPSEEK = """{{ bos_token }}
{%- for message in messages %}
{%- if message.role == 'user' %}<｜User｜>{{ message.content }}
{%- elif message.role == 'tool' %}<｜tool▁outputs▁begin｜>{{ message.content }}
{%- elif message.tool_calls is defined %}<｜Assistant｜><｜tool▁calls▁begin｜>
{%- for call in message.tool_calls %}<｜tool▁call▁begin｜>{{ call.type }}<｜tool▁sep｜>
{{- call.function.name + '\\n```json\\n' + call.function.arguments + '\\n```' -}}
<｜tool▁call▁end｜>{% endfor %}<｜tool▁calls▁end｜>
{%- else %}{{ message.content }}{% endif %}
{%- endfor %}
{%- if tools %}{{ tools | tojson }}{% endif %}<｜Assistant｜><think>
"""

HARMONY = """<|start|>system<|message|>Valid channels: analysis, commentary, final.<|end|>
{%- if tools %}<|start|>developer<|message|>{% for tool in tools %}{{ tool.function.name }}
{%- for name, schema in tool.function.parameters.properties.items() %}
{{ name }}: {{ 'string' if schema.type == 'string' else 'any' }}, // {{ schema.description }}
{%- endfor %}{% endfor %}<|end|>{% endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}<|start|>functions.f to=assistant<|channel|>commentary<|message|>
{{- message.content | tojson }}<|end|>
{%- elif message.tool_calls %}
{%- if message.thinking %}<|start|>assistant<|channel|>analysis<|message|>{{ message.thinking }}
{%- endif %}<|start|>assistant to=functions.{{ message.tool_calls[0].function.name }}
{{- '<|channel|>commentary json<|message|>' }}
{{- message.tool_calls[0].function.arguments | tojson }}<|call|>
{%- else %}<|start|>{{ message.role }}<|message|>{{ message.content }}<|end|>{% endif %}
{%- endfor %}<|start|>assistant"""

PLAIN = """
{%- for message in messages %}
{%- if message.role == 'system' %}{{ raise_exception('no system messages') }}{% endif %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('roles must alternate') }}{% endif -%}
<start_of_turn>{{ message.role }}
{{ message.content | trim }}<end_of_turn>
{% endfor %}<start_of_turn>model
"""

PARTS = """<|im_start|>
{%- for message in messages %}{{ message['role'] | capitalize }}
{%- if message['content'][0]['type'] == 'image' %}:{% else %}: {% endif %}
{%- for part in message['content'] %}
{%- if part['type'] == 'text' %}{{ part['text'] }}{% endif %}
{%- endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}Assistant:{% endif %}"""
"""SmolVLM's, whose contents are lists of parts."""

QWEN_XML = """{%- if tools %}<|im_start|>system
<tools>
{%- for tool in tools %}<name>{{ tool.function.name }}</name>
{%- for name, schema in tool.function.parameters.properties | items %}
<parameter>{{ name }}</parameter>
{%- endfor %}{% endfor %}
</tools>
<tool_call><function=name><parameter=key>
value
</parameter></function></tool_call><|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}
{%- for call in message.tool_calls or [] %}
<tool_call>
<function={{ call.function.name }}>
{%- for key, value in call.function.arguments | items %}{{ '\\n' }}<parameter={{ key }}>
{{ value | tojson if value is mapping or value is sequence and value is not string else value }}
</parameter>
{%- endfor %}
</function>
</tool_call>
{%- endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
"""Qwen3-Coder's, which walks schemas and arguments."""

GPT_OSS = HARMONY.replace(
    "{%- elif message.tool_calls %}",
    "{%- elif message.tool_calls %}{% if message.content and message.thinking %}"
    "{{ raise_exception('Cannot pass both content and thinking') }}{% endif %}"
    "{% if message.content %}<|start|>assistant<|channel|>analysis<|message|>"
    "{{ message.content }}{% endif %}",
)

GEMMA_2 = """{{ bos_token }}{% if messages[0].role == 'system' %}
{{- raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{%- endif -%}
<start_of_turn>{{ 'model' if message.role == 'assistant' else message.role }}
{{ message.content | trim }}<end_of_turn>
{% endfor %}{% if add_generation_prompt %}<start_of_turn>model
{% endif %}"""

STRICT_SYSTEM = """
{%- for message in messages %}{% if message.role == 'system' and not loop.first %}
{{- raise_exception('System message must be at the beginning.') }}{% endif %}<|im_start|>
{{- message.role }}
{{ message.content }}<|im_end|>
{% endfor %}<|im_start|>assistant
"""
"""Qwen 3.5's."""

TAKES_TURNS = MISTRAL.replace(
    "{{ bos_token }}",
    """{{ bos_token }}{% set turns = namespace(number=0) %}
{%- for message in messages %}
{%- if message.role == 'user' or message.role == 'assistant' and not message.tool_calls %}
{%- if (message.role == 'user') != (turns.number % 2 == 0) %}
{{- raise_exception('conversation roles must alternate') }}{% endif %}
{%- set turns.number = turns.number + 1 %}{% endif %}{% endfor %}""",
    1,
)
"""Mistral Small's, which counts turns without calls and answers."""

DEEPSEEK_R1 = """{{ bos_token }}
{%- for message in messages %}
{%- if message.role == 'user' %}<｜User｜>{{ message.content }}
{%- elif message.role == 'assistant' and message.content is none %}
{%- for call in message.tool_calls -%}
<｜Assistant｜><｜tool▁call▁begin｜>{{ call.type }}<｜tool▁sep｜>
{{- call.function.name + '\\n```json\\n' + call.function.arguments + '\\n```' -}}
<｜tool▁call▁end｜>{% endfor %}<|eot_id|>
{%- elif message.role == 'assistant' %}<｜Assistant｜>{{ message.content }}<|eot_id|>
{%- elif message.role == 'tool' %}<｜tool▁outputs▁begin｜>{{ message.content }}
{%- else %}{{ message.content }}{% endif %}
{%- endfor %}
{%- if tools %}{{ tools | tojson }}{% endif %}<｜Assistant｜>"""
"""Shows calls only where the content is null."""

JOINED = """{% for message in messages %}{{ message.content | trim }}{% endfor %}<|im_end|>
{{- messages[0].content | replace('<image>', '') | lower }}
{{- '<' + (messages[0].name or '') + '>' }}{{ messages | tojson(ensure_ascii=True) }}"""
"""What no family does, but some template might."""

ALL = {
    "hermes": HERMES,
    "llama": LLAMA,
    "mistral": MISTRAL,
    "deepseek": DEEPSEEK,
    "harmony": HARMONY,
    "plain": PLAIN,
    "parts": PARTS,
    "qwen_xml": QWEN_XML,
    "gpt_oss": GPT_OSS,
    "gemma_2": GEMMA_2,
    "strict_system": STRICT_SYSTEM,
    "takes_turns": TAKES_TURNS,
    "deepseek_r1": DEEPSEEK_R1,
    "joined": JOINED,
}

CONTROL_TEXTS = [
    *("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|python_tag|>"),
    *("<|start_header_id|>", "<|end_header_id|>", "<start_of_turn>", "<end_of_turn>"),
    *("[INST]", "[/INST]", "[TOOL_CALLS]", "[ARGS]", "[TOOL_RESULTS]"),
    *("[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "<｜User｜>", "<｜Assistant｜>"),
    *("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁outputs▁begin｜>"),
    *("<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"),
    *("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|constrain|>", "<|call|>"),
    # Of no family: parts of words, and tokens that overlap.
    *("<|object_ref_start|>", "|im_end|>", "<<s>"),
]
CONTROL_TOKENS = {text: 1000 + i for i, text in enumerate(CONTROL_TEXTS)}
