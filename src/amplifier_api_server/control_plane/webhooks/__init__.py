"""Telling other people's servers that something happened: signing, sending, and when to try again."""
