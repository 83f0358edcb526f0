package config

import (
	"bytes"
	"cmp"
	"encoding/json"
	"reflect"
	"time"
)

// shown is one setting as `diarkisd config show` prints it.
type shown struct {
	Value any    `json:"value"`
	From  string `json:"from"`
}

// Show returns the settings in force as indented JSON: by file and key, each
// with its value and where that came from, in the units of the files. Secrets
// are masked. Only the role's own main.json is included, or all without a role.
func (c *Config) Show() []byte {
	out := map[string]map[string]shown{}
	for _, s := range c.sections() {
		if _, isRole := ParseRole(s.name); isRole && c.Role != "" && s.name != string(c.Role) {
			continue
		}
		keys := map[string]shown{}
		for _, f := range s.fields {
			v := reflect.ValueOf(s.target).Elem().FieldByIndex(f.index).Interface()
			if d, ok := v.(time.Duration); ok {
				v = int64(d / f.unit)
			}
			keys[f.key] = shown{v, c.sources[s.name+"."+f.key]}
		}
		out[s.name] = keys
	}
	out["environment"] = c.Env.show()
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(out); err != nil {
		panic(err) // only plain values are in it
	}
	return b.Bytes()
}

func (e Env) show() map[string]shown {
	values := map[string]any{
		envCloud: cmp.Or(e.Cloud, e.PublicAddress), envShutdownTimeout: int64(e.ShutdownTimeout / time.Second), envServerType: e.ServerType,
		envStructErr: e.StructErr, envJSONLog: e.JSONLog, envStopOnSIGHUP: e.StopOnSIGHUP, envAppName: e.AppName,
		envAppVersion: e.AppVersion, envClientKey: e.ClientKey, envRunDir: e.RunDir,
		envClusterSecret: e.ClusterSecret, envClusterSecretFile: e.ClusterSecretFile,
		envTicketKey: e.TicketKey, envTicketKeyFile: e.TicketKeyFile,
	}
	out := map[string]shown{}
	for name, v := range values {
		from := sourceDefault
		if getenv(name) != "" {
			from = name
		}
		if name == envClusterSecret && e.ClusterSecretFile != "" {
			from = envClusterSecretFile
		}
		if name == envTicketKey && e.TicketKeyFile != "" {
			from = envTicketKeyFile
		}
		out[name] = shown{v, from}
	}
	return out
}
