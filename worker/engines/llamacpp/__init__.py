"""The engine on llama.cpp's C API. No thread but the engine loop may call it."""
