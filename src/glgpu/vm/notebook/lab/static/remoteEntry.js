// JupyterLab's way of loading an extension, written by hand: there is nothing in here to be built.
(() => {
  const NAME = 'glgpu-notebook';
  const LOOK_MS = 15000;
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
    const { now, until, warn_seconds } = await answer.json();
    const warned = until - now > warn_seconds ? 0 : until;
    if (state.warned === warned) return;
    state.warned = warned;
    const { Notification } = await module('@jupyterlab/apputils');
    // It was given more time.
    if (state.notice) Notification.dismiss(state.notice);
    state.notice = '';
    if (!warned) return;
    const end = new Date(Date.now() + (until - now) * 1000);
    const at = end.toLocaleTimeString([], { hour: '2-digit', minute: '2-digit' });
    state.notice = Notification.warning(
      // JupyterLab shows 140 characters.
      `Ends at ${at}; files are saved, a kernel's memory is not. \`glgpu notebook extend 2h\` gives it more time.`,
      { autoClose: false }
    );
  }

  const plugin = {
    id: `${NAME}:ends-soon`,
    autoStart: true,
    activate: app => {
      const state = { warned: 0, notice: '' };
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
