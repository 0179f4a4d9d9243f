"""The verb that `demo` adds to the `omni` program."""

from pathlib import Path
from typing import Annotated

import typer

HostOption = Annotated[
    str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")
]
PortOption = Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")]
ModelOption = Annotated[
    str | None, typer.Option(help="Checkpoint directory or hub id [default: embedded omni-tiny]")
]
AdapterOption = Annotated[
    str | None,
    typer.Option(help="Folder that `omni finetune` wrote; its base is then the default model."),
]
ModelsOption = Annotated[
    list[Path] | None,
    typer.Option("--models", help="Folder of checkpoints and adapters to choose from; repeatable."),
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ... [default: cpu]")]
PasswordOption = Annotated[
    str | None,
    typer.Option(
        envvar="OMNI_DEMO_PASSWORD", help="Ask visitors for it; their user name is `omni`."
    ),
]
NetworkOption = Annotated[
    bool, typer.Option("--allow-network", help="Visitors may name hub ids as models.")
]
UploadOption = Annotated[str, typer.Option("--max-upload", help="Largest file, such as 200MB.")]
OpenOption = Annotated[bool, typer.Option("--open", help="Open the page in the browser.")]


def register(app: typer.Typer) -> None:
    """Add the verb.

    Args:
        app: The `omni` program.
    """
    app.command("demo")(demo)


def demo(
    host: HostOption = "127.0.0.1",
    port: PortOption = 7860,
    model: ModelOption = None,
    adapter: AdapterOption = None,
    models: ModelsOption = None,
    device: DeviceOption = None,
    password: PasswordOption = None,
    allow_network: NetworkOption = False,
    max_upload: UploadOption = "200MB",
    open_browser: OpenOption = False,
) -> None:
    """Talk with documents, videos and recordings in the browser.

    The page is served on this machine only, unless --host says otherwise. It needs no network.
    """
    from demo.server import ServerSettings, serve
    from omni.allocator import give_freed_memory_back

    give_freed_memory_back()
    serve(
        ServerSettings(
            host=host,
            port=port,
            model=model,
            adapter=adapter,
            folders=tuple(models or ()),
            device=device,
            password=password,
            allow_network=allow_network,
            max_upload=max_upload,
            open_browser=open_browser,
        )
    )
