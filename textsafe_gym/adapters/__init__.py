"""Our environments in other libraries' forms, and theirs in ours; each module needs its library and no other."""
