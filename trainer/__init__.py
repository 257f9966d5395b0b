"""Everything offline: data, Semantic IDs, the dual-head model, distillation, evaluation, export. The only torch importer."""
