{{- define "canarium.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* At most 40 characters: KubeRay adds its own suffixes to a RayService's name. */}}
{{- define "canarium.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains (include "canarium.name" .) .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "canarium.name" .) | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "canarium.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/name: {{ include "canarium.name" . | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{ include "canarium.selector" . }}
{{- end }}

{{/* Pods carry no app.kubernetes.io/name of ours: KubeRay selects its head Service by its own. */}}
{{- define "canarium.selector" -}}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/part-of: canarium
{{- end }}

{{- define "canarium.podLabels" -}}
{{ include "canarium.selector" .root }}
app.kubernetes.io/component: {{ .component }}
{{- with .root.Values.podLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "canarium.podAnnotations" -}}
canarium/config-sha256: {{ include "canarium.revision" . }}
{{- with .Values.podAnnotations }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "canarium.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "canarium.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "canarium.image" -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}

{{- define "canarium.stateClaim" -}}
{{- default (printf "%s-state" (include "canarium.fullname" .)) .Values.state.persistence.existingClaim }}
{{- end }}

{{- define "canarium.registryClaim" -}}
{{- default (printf "%s-registry" (include "canarium.fullname" .)) .Values.registry.persistence.existingClaim }}
{{- end }}

{{/* What must not be deployed, said in one line each. */}}
{{- define "canarium.check" -}}
{{- if not .Values.auth.tokensSecret.name }}
{{- fail "auth.tokensSecret.name is required: the pods listen on every interface, so Canarium starts only with tokens. Create a Secret with the keys 'tokens' (lines of name:role:sha256) and 'monitor-token' (a token of that list), and name it here" }}
{{- end }}
{{- if not .Values.models }}
{{- fail "models is required: put the models section of your canarium.yaml here" }}
{{- end }}
{{- if mod .Values.server.gateways .Values.worker.replicas }}
{{- fail (printf "server.gateways (%v) must be a multiple of worker.replicas (%v): Ray Serve fills one pod after the other, and a worker pod without a gateway listens on no port and never becomes ready" .Values.server.gateways .Values.worker.replicas) }}
{{- end }}
{{- $mode := default "off" .Values.governance.mode }}
{{- if and (ne $mode "off") (not .Values.governance.trusted_keys) }}
{{- fail (printf "governance.mode is %s, which needs governance.trusted_keys: the public key of at least one approver" $mode) }}
{{- end }}
{{- range $model, $settings := .Values.models }}
{{- if and (eq $mode "off") $settings.policy }}
{{- fail (printf "models.%s.policy has no effect while governance.mode is off: set governance.mode to warn or enforce, and governance.trusted_keys" $model) }}
{{- end }}
{{- end }}
{{- if and .Values.metrics.podMonitor.enabled .Values.metrics.serviceMonitor.enabled }}
{{- fail "metrics.podMonitor and metrics.serviceMonitor would scrape every monitor twice: enable one of them" }}
{{- end }}
{{- end }}

{{/* canarium.yaml as the pods read it. */}}
{{- define "canarium.config" -}}
apiVersion: canarium/v1
server:
  host: 0.0.0.0
  http_port: 8000
  grpc_port: 8001
  monitor_port: 8002
  control_port: 8003
  gateways: {{ .Values.server.gateways }}
  max_body_mib: {{ .Values.server.maxBodyMib }}
  max_inflight_mib: {{ .Values.server.maxInflightMib }}
state:
  dir: /var/lib/canarium
  database: sqlite
registry:
  dir: {{ .Values.registry.dir }}
auth:
  mode: {{ .Values.auth.mode }}
  tokens_file: /etc/canarium/auth/tokens
  data_plane: {{ .Values.auth.dataPlane }}
{{- with .Values.governance }}
governance:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.card }}
card:
  {{- toYaml . | nindent 2 }}
{{- end }}
models:
  {{- toYaml .Values.models | nindent 2 }}
{{- end }}

{{/* What the applications wait for to be in the file, and the monitors look for: the kubelet brings a new file within minutes. */}}
{{- define "canarium.revision" -}}
{{- include "canarium.config" . | sha256sum }}
{{- end }}

{{- define "canarium.serveConfig" -}}
{{- $revision := include "canarium.revision" . -}}
# Gateways listen for themselves. A trace of a CPU keeps all replicas off the head, which has none.
proxy_location: Disabled
logging_config:
  log_level: WARNING
  enable_access_log: false
applications:
  - name: canarium
    route_prefix: null
    import_path: serving.app:build_app
    args:
      config: /etc/canarium/config/canarium.yaml
      revision: {{ $revision | quote }}
    deployments:
      - name: Gateway
        max_replicas_per_node: {{ div .Values.server.gateways .Values.worker.replicas }}
        ray_actor_options: {num_cpus: 0.01}
{{- range $model, $settings := .Values.models }}
{{- range $variant, $given := $settings.variants }}
{{- if ne (dig "placement" "isolated" $given) "colocated" }}
  - name: {{ printf "canarium-%s-%s" $model $variant | quote }}
    route_prefix: null
    import_path: serving.app:build_variant
    args:
      config: /etc/canarium/config/canarium.yaml
      revision: {{ $revision | quote }}
      model: {{ $model | quote }}
      variant: {{ $variant | quote }}
    deployments:
      - name: {{ $variant | quote }}
        ray_actor_options: {num_cpus: 0.01}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "canarium.env" -}}
{{- range $name, $value := .Values.ray.env }}
- name: {{ $name | quote }}
  value: {{ $value | quote }}
{{- end }}
{{- $handleMib := min 2047 (max 256 (mul 2 .Values.server.maxBodyMib)) }}
{{- if not (hasKey .Values.ray.env "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH") }}
- name: RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH
  value: {{ mul $handleMib 1048576 | quote }}
{{- end }}
- name: HOME
  value: /tmp
- name: CANARIUM_MONITOR
  value: {{ printf "http://%s-monitor.%s.svc:8002" (include "canarium.fullname" .) .Release.Namespace }}
{{- end }}

{{- define "canarium.monitorEnv" -}}
- name: HOME
  value: /tmp
- name: CANARIUM_CONTROL
  value: {{ printf "http://%s-control.%s.svc:8003" (include "canarium.fullname" .) .Release.Namespace }}
- name: CANARIUM_MONITOR_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ .Values.auth.tokensSecret.name | quote }}
      key: {{ .Values.auth.tokensSecret.monitorTokenKey | quote }}
{{- end }}

{{- define "canarium.mounts" -}}
- name: state
  mountPath: /var/lib/canarium
- name: tmp
  mountPath: /tmp
- name: config  # as a whole, not by subPath: a file mounted so is never renewed
  mountPath: /etc/canarium/config
  readOnly: true
- name: tokens
  mountPath: /etc/canarium/auth
  readOnly: true
{{- if .Values.registry.persistence.enabled }}
- name: registry
  mountPath: {{ .Values.registry.dir }}
  readOnly: true
{{- end }}
{{- end }}

{{- define "canarium.volumes" -}}
- name: tmp
  emptyDir: {}
- name: config
  configMap:
    name: {{ include "canarium.fullname" . | quote }}
- name: tokens
  secret:
    secretName: {{ .Values.auth.tokensSecret.name | quote }}
    defaultMode: 0440
    items:
      - {key: {{ .Values.auth.tokensSecret.tokensKey | quote }}, path: tokens}
{{- if .Values.registry.persistence.enabled }}
- name: registry
  persistentVolumeClaim:
    claimName: {{ include "canarium.registryClaim" . | quote }}
    readOnly: true
{{- end }}
{{- end }}

{{/* What head and worker pods share. */}}
{{- define "canarium.podSpec" -}}
serviceAccountName: {{ include "canarium.serviceAccountName" . | quote }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- end }}
