"""Where tasks come from: files, splits, prompts and their inverse."""
