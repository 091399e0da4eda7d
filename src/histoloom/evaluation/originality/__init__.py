"""Is a synthetic patch a copy of a training patch? What is measured and promised: docs/explanation/originality.md."""
