"""Captures of GPT-2 by other libraries, audited: ``make peers``."""
