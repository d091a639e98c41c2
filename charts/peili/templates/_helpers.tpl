{{/* The product's block: `peili`, and what a values file says under `spegel`, Spegel's name for it, on top. */}}
{{- define "peili.values" -}}
{{- mergeOverwrite (deepCopy .Values.peili) (.Values.spegel | default dict) | toYaml -}}
{{- end -}}

{{- define "peili.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* At most 49 characters: "-cleanup-wait" follows, and 63 are a label's. */}}
{{- define "peili.fullname" -}}
{{- $name := include "peili.name" . -}}
{{- $full := .Values.fullnameOverride | default (contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name)) -}}
{{- $full | trunc 49 | trimSuffix "-" -}}
{{- end -}}

{{- define "peili.namespace" -}}
{{- .Values.namespaceOverride | default .Release.Namespace -}}
{{- end -}}

{{/* Which installation a node's hosts.toml belongs to: two on one node refuse each other. */}}
{{- define "peili.release" -}}
{{- printf "%s/%s" (include "peili.namespace" .) .Release.Name -}}
{{- end -}}

{{- define "peili.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "peili.selectorLabels" -}}
app.kubernetes.io/name: {{ include "peili.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Call with a dict of root and component. */}}
{{- define "peili.labels" -}}
{{ include "peili.selectorLabels" .root }}
app.kubernetes.io/component: {{ .component }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "peili.serviceAccountName" -}}
{{- .Values.serviceAccount.create | ternary (.Values.serviceAccount.name | default (include "peili.fullname" .)) (.Values.serviceAccount.name | default "default") -}}
{{- end -}}

{{/* The Secret that makes pods members of one cluster; empty: there is none. */}}
{{- define "peili.clusterSecretName" -}}
{{- if .Values.clusterSecret.generate -}}
{{ include "peili.fullname" . }}-cluster
{{- else -}}
{{ .Values.clusterSecret.existingSecret }}
{{- end -}}
{{- end -}}

{{/* Where the first peers are found. */}}
{{- define "peili.bootstrapDomain" -}}
{{- printf "%s-bootstrap.%s.svc.%s" (include "peili.fullname" .) (include "peili.namespace" .) .Values.clusterDomain -}}
{{- end -}}

{{/* The registry's port in the pod: on the node's own network there is one port for all. */}}
{{- define "peili.registryPort" -}}
{{- eq .Values.service.registry.mode "hostNetwork" | ternary .Values.service.registry.nodePort .Values.service.registry.port -}}
{{- end -}}

{{/* What is the same in the two containers: where the node is, and what a user adds. */}}
{{- define "peili.nodeIp" -}}
- name: NODE_IP
{{- if .Values.service.registry.nodeIp }}
  value: {{ .Values.service.registry.nodeIp | quote }}
{{- else }}
  valueFrom:
    fieldRef:
      fieldPath: status.hostIP
{{- end }}
{{- end -}}

{{/* A mistake that the schema cannot see. */}}
{{- define "peili.checks" -}}
{{- $peili := include "peili.values" . | fromYaml -}}
{{- if and (eq $peili.tagResolution "upstream-first") (empty $peili.mirroredRegistries) -}}
{{- fail "peili.tagResolution=upstream-first needs peili.mirroredRegistries: containerd can be told to ask a registry first only where that registry is named" -}}
{{- end -}}
{{- if and (eq $peili.tagResolution "upstream-first") (not $peili.resolveTags) -}}
{{- fail "peili.resolveTags=false means that tags are never looked up in the cluster, and peili.tagResolution=upstream-first that they are where the registry is down: leave one of them out" -}}
{{- end -}}
{{- if and .Values.clusterSecret.existingSecret .Values.clusterSecret.generate -}}
{{- fail (printf "clusterSecret.existingSecret=%q and clusterSecret.generate=true: leave one of them out" .Values.clusterSecret.existingSecret) -}}
{{- end -}}
{{- $closed := or .Values.clusterSecret.existingSecret .Values.clusterSecret.generate $peili.requireNodeToken -}}
{{- if and $closed (not $peili.containerdMirrorAdd) (not $peili.persistence.enabled) -}}
{{- fail "peili.containerdMirrorAdd=false and peili.persistence.enabled=false: clusterSecret and peili.requireNodeToken open the host port to who sends the node's token, which nobody could make here, so that each node's own containerd would be refused. Set peili.persistence.enabled=true and run `peili configuration` with DATA_DIR on the nodes (docs/fresh-nodes.md), or leave peili.containerdMirrorAdd true" -}}
{{- end -}}
{{- if and .Values.serviceMonitor.enabled .Values.podMonitor.enabled -}}
{{- fail "serviceMonitor.enabled and podMonitor.enabled: every pod would be scraped twice; choose one" -}}
{{- end -}}
{{- end -}}
