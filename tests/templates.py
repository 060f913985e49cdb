"""Chat templates with tools and reasoning, short: each writes them as one family of models does."""

from __future__ import annotations

_SHOWN = (
    "{%- macro shown(content) -%}{%- if content is string -%}{{ content }}{%- else -%}{%- for part in content -%}"
    "{%- if part.type == 'image' -%}{{ PICTURE }}{%- elif part.type == 'text' -%}{{ part.text }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{%- endmacro -%}"
)
_CHATML_TOOLS = (
    "{%- if tools %}{{- '<|im_start|>system\\n# Tools\\n<tools>' }}{%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}"
    "{%- endfor %}{{- '\\n</tools>\\nHINT<|im_end|>\\n' }}{%- endif %}"
)
_CHATML_RESULT = (
    "{%- elif m.role == 'tool' %}{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}"
    "{%- endif %}{{- '\\n<tool_response>\\n' + shown(m.content) + '\\n</tool_response>' }}"
    "{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}"
)
_QWEN_PICTURE = _SHOWN.replace("PICTURE", "'<|vision_start|><|image_pad|><|vision_end|>'")
_THOUGHTS = (
    "{{- '<|im_start|>assistant\\n' }}{%- if m.reasoning_content is string %}"
    "{{- '<think>\\n' + m.reasoning_content.strip('\\n') + '\\n</think>\\n\\n' }}{%- endif %}"
)
HERMES = (
    _QWEN_PICTURE + _CHATML_TOOLS.replace("HINT", '<tool_call>\\n{\\"name\\": <name>, \\"arguments\\": <object>}\\n</tool_call>')
    + "{%- for m in messages %}{%- if m.role in ('user', 'system') %}"
    "{{- '<|im_start|>' + m.role + '\\n' + shown(m.content) + '<|im_end|>\\n' }}"
    "{%- elif m.role == 'assistant' %}" + _THOUGHTS + "{{- shown(m.content) }}"
    "{%- for call in m.tool_calls or [] %}{%- if not loop.first or m.content %}{{- '\\n' }}{%- endif %}"
    "{{- '<tool_call>\\n{\"name\": \"' + call.function.name + '\", \"arguments\": ' }}"
    "{%- if call.function.arguments is string %}{{- call.function.arguments }}"
    "{%- else %}{{- call.function.arguments | tojson }}{%- endif %}{{- '}\\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>\\n' }}"
    + _CHATML_RESULT + "{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"
)  # fmt: skip # Qwen3, Qwen3-VL
XML = (
    _QWEN_PICTURE + _CHATML_TOOLS.replace(
        "HINT", "<tool_call>\\n<function=name>\\n<parameter=x>\\nvalue\\n</parameter>\\n</function>\\n</tool_call>"
    )
    + "{%- for m in messages %}{%- set content = shown(m.content) | trim %}{%- if m.role in ('user', 'system') %}"
    "{{- '<|im_start|>' + m.role + '\\n' + content + '<|im_end|>\\n' }}"
    "{%- elif m.role == 'assistant' %}" + _THOUGHTS + "{{- content }}{%- for call in m.tool_calls or [] %}"
    "{{- '\\n\\n<tool_call>\\n<function=' + call.function.name + '>\\n' }}"
    "{%- for key, value in call.function.arguments | items %}"
    "{{- '<parameter=' + key + '>\\n' }}{{- value if value is string else value | tojson }}{{- '\\n</parameter>\\n' }}"
    "{%- endfor %}{{- '</function>\\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>\\n' }}"
    + _CHATML_RESULT + "{%- else %}{{- raise_exception('Unexpected message role.') }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- if enable_thinking is defined and not enable_thinking %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}{%- else %}{{- '<think>\\n' }}{%- endif %}{%- endif %}"
)  # fmt: skip # Qwen3.5
GLM = (
    "[gMASK]<sop>" + _SHOWN.replace("PICTURE", "'<|begin_of_image|><|image|><|end_of_image|>'")
    + "{%- if tools -%}<|system|>\n# Tools\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    "<tool_call>{name}\n<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n</tool_call>{%- endif -%}"
    "{%- for m in messages -%}{%- if m.role == 'user' -%}<|user|>\n{{ shown(m.content) }}"
    "{{- '/nothink' if enable_thinking is defined and not enable_thinking else '' -}}"
    "{%- elif m.role == 'assistant' -%}<|assistant|>{{ '\\n<think>' + (m.reasoning_content or '').strip() + '</think>' }}"
    "{%- if m.content %}{{ '\\n' + shown(m.content).strip() }}{%- endif -%}{% for call in m.tool_calls or [] %}"
    "{{ '\\n<tool_call>' + call.function.name }}\n{% set given = call.function.arguments %}"
    "{% if given is not mapping %}{{ raise_exception('arguments must be an object') }}{% endif %}"
    "{% for key, value in given.items() %}<arg_key>{{ key }}</arg_key>\n"
    "<arg_value>{{ value if value is string else value | tojson }}</arg_value>\n{% endfor %}</tool_call>{% endfor %}"
    "{%- elif m.role == 'tool' -%}<|observation|>{%- if m.content is string -%}\n<tool_response>\n"
    "{{ m.content }}\n</tool_response>"
    "{%- else -%}{% for part in m.content %}\n<tool_response>\n{{ part }}\n</tool_response>{% endfor %}{%- endif -%}"
    "{%- elif m.role == 'system' -%}<|system|>\n{{ shown(m.content) }}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>"
    "{{- '\\n<think></think>' if enable_thinking is defined and not enable_thinking else '' -}}{%- endif -%}"
)  # fmt: skip # GLM-4.5V, GLM-4.6V
MISTRAL = (
    "{{- bos_token }}{%- for m in messages %}{%- if m.role == 'user' %}{%- if tools and loop.last %}"
    "{{- '[AVAILABLE_TOOLS]' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{%- endif %}{{- '[INST]' + m.content + '[/INST]' }}"
    "{%- elif m.tool_calls is defined %}{{- '[TOOL_CALLS][' }}{%- for call in m.tool_calls %}"
    "{%- if call.id is not defined or call.id | length != 9 %}{{- raise_exception('ids have 9 characters') }}{%- endif %}"
    "{{- (call.function | tojson)[:-1] + ', \"id\": \"' + call.id + '\"}' }}{{- '' if loop.last else ', ' }}{%- endfor %}"
    "{{- ']' + eos_token }}{%- elif m.role == 'assistant' %}{{- m.content + eos_token }}"
    "{%- elif m.role == 'tool' %}{{- '[TOOL_RESULTS]{\"content\": ' + m.content + ', \"call_id\": \"' + m.tool_call_id + '\"}' }}"
    "{%- endif %}{%- endfor %}"
)  # Mistral-Nemo
TEXT_ARGUMENTS = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% for call in m.tool_calls or [] %}"
    "<call>{{ call['function']['name'] + '(' + call['function']['arguments'] + ')' }}{% endfor %}\n{% endfor %}"
)
PYTHON_ARGUMENTS = TEXT_ARGUMENTS.replace(" + call['function']['arguments'] + ')'", "}}{{ call['function']['arguments'] }}{{ ')'")
