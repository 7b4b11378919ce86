"""The zip and its files, opened without trust."""
