"""The rewriting stage: carrying a plan out, and repairing every layer behind the first change."""
