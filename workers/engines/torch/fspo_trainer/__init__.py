"""The PyTorch engine of fspo: `python -m fspo_trainer <train|sample|score|describe> <spec.json>`.

The same contract as the TypeScript engine (activities/contract.ts). A few-shot prefix is computed once for
all its queries and both answers of each, with exact gradients.
"""
