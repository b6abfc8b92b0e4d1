"""The same model in MLServer, as its documentation builds a custom runtime: onnxruntime or LiteRT, one thread."""

from __future__ import annotations

import os
from typing import Any

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Direct(MLModel):  # type: ignore[misc]
    async def load(self) -> bool:
        path = self.settings.parameters.uri
        self._run: Any
        if path.endswith(".tflite"):
            from ai_edge_litert.interpreter import Interpreter

            engine = Interpreter(path, num_threads=1)
            engine.allocate_tensors()
            source, target = engine.get_input_details()[0], engine.get_output_details()[0]

            def run(array: Any) -> Any:
                engine.set_tensor(source["index"], array.astype(source["dtype"]))
                engine.invoke()
                return engine.get_tensor(target["index"])

            self._run = run
        else:
            os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            name = session.get_inputs()[0].name
            self._run = lambda array: session.run(None, {name: array.astype("float32")})[0]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        output = self._run(NumpyCodec.decode_input(payload.inputs[0]))
        return InferenceResponse(
            id=payload.id, model_name=self.name, outputs=[NumpyCodec.encode_output(name="y", payload=output)]
        )
