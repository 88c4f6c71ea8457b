"""What is computed over the tensors of a Source, piece by piece, with numpy alone: statistics, comparison, averages."""
