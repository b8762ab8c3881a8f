"""Find speech in a WAV file through a running server, window by window, with the state of each answer given back.

    canarium up -f deployments/examples/voice/canarium.yaml
    python deployments/examples/voice/stream.py speech.wav        # 16 kHz, mono, 16 bits

Nothing but the unmodified Triton client and NumPy is used.
"""

from __future__ import annotations

import argparse
import sys
import wave
from collections.abc import Iterator

import numpy as np
import tritonclient.grpc as triton

RATE, WINDOW, CONTEXT = 16_000, 512, 64


def probabilities(client: triton.InferenceServerClient, samples: np.ndarray, call: str) -> Iterator[float]:
    """Probability of speech in each window of samples float32 in [-1, 1]."""
    state = np.zeros((2, 1, 128), np.float32)
    padded = np.concatenate((np.zeros(CONTEXT, np.float32), samples))
    for at in range(0, len(samples) - WINDOW + 1, WINDOW):
        tensors = {"input": padded[None, at : at + CONTEXT + WINDOW], "state": state, "sr": np.array(RATE, np.int64)}
        inputs = []
        for name, array in tensors.items():
            inputs.append(triton.InferInput(name, list(array.shape), "INT64" if name == "sr" else "FP32"))
            inputs[-1].set_data_from_numpy(array)
        answer = client.infer("voice", inputs, headers={"x-call-id": call})
        state = answer.as_numpy("stateN")
        yield float(answer.as_numpy("output")[0, 0])


def main() -> None:
    parser = argparse.ArgumentParser(description="Find speech in a WAV file.")
    parser.add_argument("file", help="16 kHz, mono, 16 bits")
    parser.add_argument("--url", default="127.0.0.1:8001", help="gRPC address of the server (default: %(default)s)")
    parser.add_argument("--call", default="call-1", help="the call's name: all its windows go to one variant")
    options = parser.parse_args()
    with wave.open(options.file) as sound:
        if (sound.getframerate(), sound.getnchannels(), sound.getsampwidth()) != (RATE, 1, 2):
            sys.exit(f"{options.file}: expected 16 kHz, mono, 16 bits")
        samples = np.frombuffer(sound.readframes(sound.getnframes()), "<i2").astype(np.float32) / 32768
    began = None
    found = probabilities(triton.InferenceServerClient(options.url), samples, options.call)
    for index, probability in enumerate([*found, 0.0]):
        at = index * WINDOW / RATE
        if probability >= 0.5 and began is None:
            began = at
        elif probability < 0.5 and began is not None:
            print(f"speech from {began:.2f} s to {at:.2f} s")
            began = None


if __name__ == "__main__":
    main()
