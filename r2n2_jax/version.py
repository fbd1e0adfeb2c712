"""The version, alone in its file so that packaging reads it without importing JAX."""

VERSION = "0.1.0"
