"""Never imported: the mechanism beside it does not compile."""
