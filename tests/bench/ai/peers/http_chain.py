"""A chain of three HTTP services, each a blocking call of the next: an API with an HTTP driver before an HTTP backend.

python http_chain.py PORT backend MODEL
python http_chain.py PORT forward URL

With ROWS, the path of an SQLite file with a table films (id, title), the backend reads a row by its key as well.
"""

import os
import sqlite3
import sys
import threading

import requests
import uvicorn
from classifier import Classifier
from fastapi import FastAPI, UploadFile


def backend(model: str) -> FastAPI:
    app, classifier = FastAPI(), Classifier(model)

    @app.post("/predict")
    def predict(file: UploadFile) -> list[tuple[int, float]]:
        return classifier.classes(file.file.read())

    opened = threading.local()  # a connection of SQLite's stays in its thread

    @app.get("/read")
    def read(key: int) -> list[tuple[int, str]]:
        if not hasattr(opened, "rows"):
            opened.rows = sqlite3.connect(os.environ["ROWS"])
        return opened.rows.execute("SELECT id, title FROM films WHERE id = ?", (key,)).fetchall()

    return app


def forward(url: str) -> FastAPI:
    app = FastAPI()

    @app.post("/predict")
    def predict(file: UploadFile) -> list[tuple[int, float]]:
        answer = requests.post(url, files={"file": file.file.read()}, timeout=120)
        answer.raise_for_status()
        return answer.json()

    @app.get("/read")
    def read(key: int) -> list[tuple[int, str]]:
        answer = requests.get(f"{url.removesuffix('/predict')}/read", params={"key": key}, timeout=120)
        answer.raise_for_status()
        return answer.json()

    return app


if __name__ == "__main__":
    made = {"backend": backend, "forward": forward}[sys.argv[2]](sys.argv[3])
    uvicorn.run(made, host="127.0.0.1", port=int(sys.argv[1]), log_level="info", access_log=False)
