"""Arguments of endpoints: declared by settings, checked by type; uploads in, copies of files out."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn

import gradio as gr
from gradio.data_classes import FileData
from gradio.utils import get_upload_folder
from pydantic import ConfigDict, ValidationError, validate_call

from sdlora.data.projects import Project
from sdlora.errors import ConfigError, SdloraError
from sdlora.filesystem.paths import path_inside
from sdlora.section import Section, first_problem, settings
from sdlora.ui.app_state import cache_file


def takes_settings(*sections: type[Section], names: Sequence[str] = (), first: Sequence[str] = ()) -> Any:
    """Give an endpoint that takes ``**settings`` a parameter for each setting of ``sections``, as it is declared.

    ``names`` chooses some of them. Parameters in ``first`` come first: positions are part of an endpoint.
    """
    declared = {setting.name: setting for section in sections for setting in settings(section)}
    chosen = [declared[name] for name in dict.fromkeys(names or declared)]
    order = ("self", *first)

    def add_parameters(function: Callable[..., Any]) -> Callable[..., Any]:
        signature, kind = inspect.signature(function), inspect.Parameter.POSITIONAL_OR_KEYWORD
        own = {name: parameter for name, parameter in signature.parameters.items() if name != "settings"}
        added = [setting for setting in chosen if setting.name not in own]
        parameters = [*own.values()]
        for name, field, default in ((setting.name, setting.field, setting.default) for setting in added):
            parameters.append(inspect.Parameter(name, kind, default=default, annotation=field.annotation))
        parameters.sort(key=lambda each: order.index(each.name) if each.name in order else len(order))
        function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        function.__annotations__ |= {setting.name: setting.field.annotation for setting in added}
        help = "".join(f"            {setting.name}: {setting.help}\n" for setting in added)
        function.__doc__ = f"{(function.__doc__ or '').rstrip()}\n{help}"
        return function

    return add_parameters


def check_arguments(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``function`` with arguments checked by type, and errors in Gradio's form."""
    checked = validate_call(config=ConfigDict(allow_inf_nan=False))(function)
    names = list(inspect.signature(function).parameters)

    @wraps(function)
    def call(*arguments: Any) -> Any:
        try:
            return checked(**dict(zip(names, arguments, strict=True)))
        except (SdloraError, ValidationError) as error:
            _raise(error)

    @wraps(function)
    async def call_and_wait(*arguments: Any) -> Any:
        try:
            return await checked(**dict(zip(names, arguments, strict=True)))
        except (SdloraError, ValidationError) as error:
            _raise(error)

    wrapper: Any = call_and_wait if inspect.iscoroutinefunction(function) else call
    wrapper.__signature__ = inspect.signature(function)  # That of the bound method.
    return wrapper


def _raise(error: SdloraError | ValidationError) -> NoReturn:
    message = first_problem(error) if isinstance(error, ValidationError) else str(error)
    raise gr.Error(message, print_exception=False) from None


def filled_project(data_dir: Path, name: str) -> Project:
    """Return the project called ``name``. Raises ConfigError if it has no pictures."""
    found = Project(data_dir, name)
    if not found.images():
        raise ConfigError(f"The project {name!r} has no pictures; hand some over to /train, or drop them.")
    return found


def uploaded_paths(files: Iterable[FileData]) -> list[Path]:
    """Return the paths of uploaded files. Raises FileError for a path that is no upload."""
    return [path_inside(Path(get_upload_folder()), file.path) for file in files]


def returned_file(path: Path) -> Any:
    """Copy a file to the page's cache; return it as Gradio's dictionary for a ``FileData``."""
    return FileData(path=cache_file(path), orig_name=path.name).model_dump()
