"""What makes a chat of token ids: templates, control tokens, tool calls, reasoning."""
