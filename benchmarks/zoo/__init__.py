"""Every vision-language model type of transformers, small and random, through every stage."""
