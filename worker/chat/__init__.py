"""Chat prompts and outputs: templates, control tokens, tool calls. It uses no engine."""
