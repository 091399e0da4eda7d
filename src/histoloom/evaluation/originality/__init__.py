"""Is a synthetic patch a copy of a training patch? docs/explanation/originality.md says what is measured and what it promises."""
