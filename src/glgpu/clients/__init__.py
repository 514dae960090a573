"""One room per outside party: each module is the only importer of its library and translates its errors."""
