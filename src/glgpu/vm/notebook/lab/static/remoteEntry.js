// JupyterLab's way of loading an extension, written by hand: there is nothing in here to be built.
(() => {
  const NAME = 'glgpu-notebook';
  const LOOK_MS = 15000;
  const WARN_SECONDS = 600;
  let shared;

  // One of the modules that JupyterLab shares with its extensions.
  async function module(name) {
    const [newest] = Object.values(shared[name]);
    return (await newest.get())();
  }

  async function look(app, state) {
    const settings = app.serviceManager.serverSettings;
    const headers = settings.token ? { Authorization: `token ${settings.token}` } : {};
    const answer = await fetch(`${settings.baseUrl}glgpu/until`, { headers, cache: 'no-store' });
    if (!answer.ok) return;
    const { now, until } = await answer.json();
    const left = until - now;
    if (left > WARN_SECONDS) {
      state.warned = 0; // It was extended: warn again when that is over.
      return;
    }
    if (state.warned === until) return;
    state.warned = until;
    const { Notification } = await module('@jupyterlab/apputils');
    const minutes = Math.max(1, Math.round(left / 60));
    Notification.warning(
      // JupyterLab shows 140 characters.
      `Ends in ${minutes} min; files are saved, a kernel's memory is not. \`glgpu notebook extend 2h\` gives it more time.`,
      { autoClose: false }
    );
  }

  const plugin = {
    id: `${NAME}:ends-soon`,
    autoStart: true,
    activate: app => {
      const state = { warned: 0 };
      const again = () => look(app, state).catch(reason => console.warn(NAME, reason));
      setInterval(again, LOOK_MS);
      void app.restored.then(again);
    }
  };

  window._JUPYTERLAB = window._JUPYTERLAB || {};
  window._JUPYTERLAB[NAME] = {
    init: scope => {
      shared = scope;
    },
    get: async () => () => ({ __esModule: true, default: plugin })
  };
})();
