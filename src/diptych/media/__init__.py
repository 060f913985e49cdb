"""Bytes to arrays, and arrays to pictures for people. Knows no model."""
