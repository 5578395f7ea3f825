"""Pure parsers: bytes in, values out. They import nothing of ours and touch no file."""
