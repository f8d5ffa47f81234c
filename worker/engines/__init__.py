"""The engines, each in its folder. It knows no Redis, no job and no HTTP. `registry` alone names
their classes: their libraries are large and may be absent."""
