"""transformers' own exporters, with attnlower between export and backend."""

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.exporters import DynamoConfig, DynamoExporter, ExecutorchConfig, ExecutorchExporter

import attnlower

torch.manual_seed(0)
config = Qwen2Config(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    use_cache=False,
)
model = Qwen2ForCausalLM(config).eval()
given = {"input_ids": torch.randint(0, 64, (2, 9)), "attention_mask": torch.ones(2, 9, dtype=torch.long)}
given["attention_mask"][1, :3] = 0
with torch.no_grad():
    wanted = model(**given).logits

# What an exporter gives is an ExportedProgram like any other.
program = DynamoExporter().export(model, given, DynamoConfig()).program
lowered = attnlower.lower(program)
print(lowered.report)
found = lowered.program.module()(**given).logits
print(f"DynamoExporter: largest difference to eager {(found - wanted).abs().max():.1e}")


class Lowering(DynamoExporter):
    """Exports, then lowers for ExecuTorch."""

    def export_program(self, model, sample_inputs, config):
        """As DynamoExporter, with the attention written for ExecuTorch."""
        program, metadata = super().export_program(model, sample_inputs, config)
        return attnlower.lower(program, target="executorch").program, metadata


class LoweredExecutorchExporter(ExecutorchExporter, Lowering):
    """ExecutorchExporter asks the next class for the exported program: that is `Lowering`."""


exported = LoweredExecutorchExporter().export(model, given, ExecutorchConfig())
found = exported(**given)["logits"]
print(f"ExecutorchExporter: largest difference to eager {(found - wanted).abs().max():.1e}")
