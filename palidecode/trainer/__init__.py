"""Fine-tune a model on rows of prompts and answers."""
