"""From tokens to certain text: assembling, ending, filtering, log probabilities. It knows no engine
and no Redis."""
