"""Captures of many prompts in a directory: shards of tensors, and an index of them.

``index`` says what is there, ``shards`` holds it, ``writer`` adds to it and survives
being killed, ``captures`` reads it and ``tables`` hands it on.
"""
