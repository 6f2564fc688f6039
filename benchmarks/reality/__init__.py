"""The simulator against the real thing: llama.cpp under replayed traces."""
