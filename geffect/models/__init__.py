"""Models by name: hub ids, directories, adapters, GGUF files, and the built-in one."""
