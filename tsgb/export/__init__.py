"""A trained role as a directory that plain transformers or peft loads, without TSGB."""
